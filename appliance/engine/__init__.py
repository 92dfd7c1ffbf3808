"""The engine room: sessions, cache, continuous batching, sampling."""
