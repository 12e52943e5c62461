"""The drawn world of the pocket base: contents and captions, drawing, tokens, nets, oracle, novel subjects."""
