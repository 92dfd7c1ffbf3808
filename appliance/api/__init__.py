"""The API room: OpenAI's endpoints and ours beside them."""
