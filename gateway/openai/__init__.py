"""OpenAI's chat API: requests in, responses out."""
