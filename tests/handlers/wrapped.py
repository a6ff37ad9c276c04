"""A generator behind a decorator, as the documentation's page on aggregate outputs shows it: the SDK does not
see that it streams, cannot encode the generator, and posts nothing."""

import functools

import runpod


def logged(function):
    @functools.wraps(function)
    def wrapper(job):
        return function(job)

    return wrapper


@logged
def handler(job):
    yield from range(3)


runpod.serverless.start({"handler": handler})
