"""Images that memory cannot hold: decoded when they are wanted, by worker processes.

Which images a step has, and how each is cut and mirrored, are functions of (seed, step, the image's
number) alone: a run goes on to the same bits after any interruption, with any number of workers.
"""
