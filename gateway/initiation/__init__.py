"""`POST /webhook/conversation-init`: ElevenLabs' own initiation webhook."""
