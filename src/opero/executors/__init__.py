"""How it happens, for one call: one executor a policy, under the same file name. Each holds state and decisions."""
