"""What ElevenLabs is told at the start of a conversation."""
