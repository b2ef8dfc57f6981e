"""ElevenLabs: its API over HTTP, what can go wrong there, and the turns to ask it."""
