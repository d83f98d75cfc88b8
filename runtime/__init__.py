"""What wraps an engine or stands for one and knows no vLLM: metering, fair shares, spans, the toy."""
