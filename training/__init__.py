"""`trimtab train`: guides, reward models, value heads and twins, from a file of preferences"""
