"""The health of instances: what is probed, what that means, and what is known of it now."""
