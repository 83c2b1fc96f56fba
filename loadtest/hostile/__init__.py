"""Attacks on a server that a good client uses: `python loadtest/hostile` prints the effect of each attack.

`row` defines an attack, `attacks` lists all of them, `attacker` runs one in a separate process, `server` and `good` are
the server and the client that it must not disturb, `play` runs them together and returns the result.
"""
