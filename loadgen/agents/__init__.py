"""The commands that start agents without a load: `loadgen agents check`, `watch` and `record`. No click here.

check.py    what works on each host                  session.py      agents, for as long as a command lasts
watch.py    live figures, and nothing kept           screen.py       how these look
record.py   a run directory of telemetry alone       passphrases.py  of the user's SSH keys, asked for before
"""
