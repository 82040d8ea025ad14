"""`parctl schema`: print the JSON Schema that editors use to complete and check recipes."""

from parctl.cli.output import print_document


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from parctl.recipes.json_schema import recipe_json_schema

    print_document(recipe_json_schema(), "json")
