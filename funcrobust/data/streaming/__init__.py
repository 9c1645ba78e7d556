"""Images that memory cannot hold: decoded when they are wanted, by worker processes.

Which images a step has, and how each is cut and mirrored, are functions of (seed, step, the image's
number) alone: a run goes on to the same bits after any interruption, with any number of workers.
"""

from funcrobust.data.streaming.images import Streamed
from funcrobust.data.streaming.opening import Streaming
from funcrobust.data.streaming.stream import Augment, Order, Stream

__all__ = ["Augment", "Order", "Stream", "Streamed", "Streaming"]
