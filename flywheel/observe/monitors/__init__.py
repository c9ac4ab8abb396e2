"""Monitors read one episode after the other in order of start and weigh the evidence that something changed."""
