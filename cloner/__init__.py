"""The cloner: clones a caller's voice at ElevenLabs, or finds it again, and gives it to an agent."""
