"""From an app's endpoints to endpoints on Runpod: what is wanted, what is there, the difference, and its carrying out.

Data flows one way: `wishes` (specs and configuration) and `actual` (what the platform has) meet in `planning`, which
touches nothing; `applying` carries a plan out, and `releases` puts an earlier one back. `api` is the only module that
speaks HTTP. There is no state on this machine: whatever flashkit needs to know again is in the endpoints' own
environment (`identity`) or in one template of the account (`record`).
"""
