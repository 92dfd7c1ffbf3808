"""What Prometheus is told: counted where it happens, or read from the live parts at a scrape."""
