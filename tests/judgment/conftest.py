"""Property tests judge results, not the speed of a busy machine."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "busy_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50
)
settings.load_profile("busy_machine")
