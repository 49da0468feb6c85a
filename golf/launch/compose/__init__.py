"""From words to components: lines, configs and what may stand in them, a user's own code, finished runs read back."""
