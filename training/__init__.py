"""`trimtab train`: guides, reward models, value heads, twins and directional models, from a file of preferences"""
