"""One function a figure; the only place of matplotlib. Frames in, figures out; seconds since the run's start.

Colours are Okabe and Ito's, told apart by colour-blind readers; line styles and markers tell them apart in print.
"""
