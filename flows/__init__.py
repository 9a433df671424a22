"""What a person, an API call or a schedule starts: one file a flow."""
