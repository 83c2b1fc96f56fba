"""Strangers against a server and one good client: `python loadtest/hostile` prints what each kind of attack does.

`row` says what an attack is, `attacks` has all of them, `attacker` runs one in a process of its own, `server` and
`good` are the two that it must not hurt, `play` puts them together and gives the verdict.
"""
