"""What `benchmarks/learning.py` teaches, and how it asks afterwards: one module a scenario."""
