"""The box on the network: HTTPS with its own certificates, its name by multicast DNS, proxies before it."""
