"""What every request passes, before and after its route: connections, bodies, signatures, failures."""
