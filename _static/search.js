// Excerpts of the search read as text: Sphinx takes formulas as they are written, and the page's list of contents too.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const spacing = /\\[,;:! ]|\\(?:left|right|[bB]igg?[lr]?|math(?:bb|rm|cal|bf)|operatorname|text|hat|tilde|bar)\b/g;
  const readable = (formula) =>
    formula.replace(/\\[()]/g, "").replace(spacing, "").replace(/[{}]/g, "").replace(/\\([a-zA-Z]+)/g, "$1");
  const textOf = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelectorAll("nav, #jb-print-docs-body, .bd-sidebar-secondary, div.math").forEach((part) => part.remove());
    page.querySelectorAll("span.math").forEach((formula) => (formula.textContent = readable(formula.textContent)));
    return textOf(page.documentElement.outerHTML, anchor);
  };
});
