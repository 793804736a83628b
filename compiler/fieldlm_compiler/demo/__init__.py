"""The kiosk story: one turn of the circle, from a plain model to one that knows a coffee shop.

`menu` and `kiosk` write what customers say and what the right call is, `customers` talk to a running server, `plan`
measures how long it will take, `story` runs the stages in order, `summary` and `report` say and draw what happened.
Uses every other room, and is used by none.
"""
