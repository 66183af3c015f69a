"""How reward models are trained: task-independent losses, adapters and file layouts."""
