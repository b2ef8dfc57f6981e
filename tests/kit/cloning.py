"""How the cloners of tests are served."""

# How often one looks for what has become due. Most of what tests wait for is found by a look.
TICK_SECONDS = 0.2
