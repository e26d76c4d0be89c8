"""Train specimens: small models of one tokenizer and one stream of data that differ in one part."""
