"""Engines that sample from a policy, and the experience collected from their samples."""
