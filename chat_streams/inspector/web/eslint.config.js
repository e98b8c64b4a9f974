// The linter's rules for the inspector's JavaScript and its tests; `make lint` runs it from the root of the repository.

import js from "@eslint/js";

const readonly = (...names) => Object.fromEntries(names.map((name) => [name, "readonly"]));

// A browser has some thousand globals, "name", "event" and "status" among them: a forgotten variable would be one of them.
const BROWSER = readonly(
  ...["document", "location", "addEventListener", "getComputedStyle", "getSelection"],
  ...["EventSource", "URL", "fetch", "setTimeout", "clearTimeout", "setInterval"],
);

const NO_HTML = {
  selector: "MemberExpression[property.name=/^(innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|write)$/]",
  message: "Add content as text or elements: as HTML, what a user wrote could become part of the page.",
};

export default [
  js.configs.recommended,
  {
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      "consistent-return": "error",
      eqeqeq: "error",
      "max-lines": ["error", 120],
      "no-console": "error",
      "no-eval": "error",
      "no-implied-eval": "error",
      "no-new-func": "error",
      "no-param-reassign": "error",
      "no-restricted-syntax": ["error", NO_HTML],
      "no-shadow": "error",
      "no-unused-vars": ["error", { args: "after-used" }],
      "no-use-before-define": "error",
      "no-var": "error",
      "prefer-const": "error",
      "prefer-template": "error",
    },
  },
  { files: ["**/static/*.mjs"], languageOptions: { globals: BROWSER } },
  { files: ["**/static/charts.mjs"], languageOptions: { globals: readonly("uPlot") } },
  // What the server renders is escaped by its templates.
  { files: ["**/static/panels.mjs"], rules: { "no-restricted-syntax": "off" } },
];
