"""What a feature means: when it is active, what that does, and a rule that says so.

collect    one pass over a corpus: how often, how strongly and in which contexts features are active
meaning    the tokens that a feature promotes, and those that its ablation moves
rules      a rule of few words that predicts where a feature is active, and how well it does
"""
