"""Runpod's management API on this machine: REST v2, and the part of GraphQL that v2 lacks.

Endpoints, templates, volumes and registries are records (`account`); their rules are pure functions (`configuration`,
`rules`); `rest` and `graphql` are the two ways in. Requests are checked with the vendor's own schema (`schema.json`,
its structure only). What a deployed endpoint does is not emulated: one that is an endpoint of the app that runs here
answers jobs under its deployed id, any other stays a record.
"""
