"""What holds for every test of the house."""

from hypothesis import HealthCheck, settings

# Examples are bounded in number, not in time: a busy machine is no failure.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")
