"""What runs on the inference host: standard library and pynvml, Python 3.8 or later, nothing else of ours."""
