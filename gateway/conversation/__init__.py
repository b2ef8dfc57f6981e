"""What ElevenLabs receives at the start of a conversation."""
