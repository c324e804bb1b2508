"""Wrappers of a vector environment, for torch and NumPy output and every autoreset mode."""

from genenv.wrappers.vector.ema_action_smoothing import EMAActionSmoothing
from genenv.wrappers.vector.flatten_observation import FlattenObservation
from genenv.wrappers.vector.intervention_window import InterventionWindow
from genenv.wrappers.vector.record_episode_statistics import RecordEpisodeStatistics
from genenv.wrappers.vector.record_images import RecordImages
from genenv.wrappers.vector.running_cost import RunningCost
from genenv.wrappers.vector.terminal_reward import TerminalReward

__all__ = [
    "EMAActionSmoothing",
    "FlattenObservation",
    "InterventionWindow",
    "RecordEpisodeStatistics",
    "RecordImages",
    "RunningCost",
    "TerminalReward",
]
