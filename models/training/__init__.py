"""How the saplings are made: tokenizer, generator, rollouts, process reward model, cards."""
