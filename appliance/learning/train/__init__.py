"""Trainer programs.

They share the box with serving, so a thread of theirs that has nothing to do must sleep and not
spin. OpenMP reads this once, when torch is loaded, hence here.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
