"""Janus-Pro: the network, its tokens, prompts, image preparation and checkpoints."""

import os

# MindSpore reads this when it is imported. Its warnings speak to its own developers (a graph "has been
# compiled again" for each task's graph); errors still come through.
os.environ.setdefault("GLOG_v", "3")
