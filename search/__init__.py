"""Search: strategies, the tree they grow, and the budget that refuses.

Knows no HTTP and no engine's insides.
"""
