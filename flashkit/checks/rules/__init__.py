"""The rules, one module a subject; `flashkit.checks.all_rules` has the list of them."""
