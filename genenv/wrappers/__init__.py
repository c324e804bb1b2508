"""Wrappers of a single environment; `genenv.wrappers.vector` holds their batched twins."""

from genenv.wrappers.ema_action_smoothing import EMAActionSmoothing
from genenv.wrappers.intervention_window import InterventionWindow
from genenv.wrappers.running_cost import RunningCost
from genenv.wrappers.terminal_reward import TerminalReward

__all__ = ["EMAActionSmoothing", "InterventionWindow", "RunningCost", "TerminalReward"]
