// What a reader of this page would trip over, one line each. `all` also asks for what has to fit at full width only.
(all) => {
  const found = [];
  const shown = (element) => element.checkVisibility(); // not so in a folded cell
  const head = (element) => (element.id || element.textContent || element.src || "").trim().replace(/\s+/g, " ").slice(0, 60);
  const cut = (element) => element.scrollWidth > element.clientWidth + 1;
  const article = document.querySelector("article") || document.body;

  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width + 1) {
    const wide = [...article.querySelectorAll("*")].filter((e) => shown(e) && e.getBoundingClientRect().right > width + 1);
    found.push(`wider than the page: ${document.documentElement.scrollWidth} px, ${wide.slice(0, 3).map((e) => `${e.tagName} ${head(e)}`)}`);
  }
  if (all) {
    for (const formula of article.querySelectorAll("div.math"))
      if (shown(formula) && cut(formula)) found.push(`formula cut: ${head(formula)}`);
    for (const code of article.querySelectorAll("pre"))
      if (shown(code) && cut(code)) {
        const lines = code.textContent.split("\n");
        found.push(`code cut: ${lines.reduce((a, b) => (a.length >= b.length ? a : b)).trim().slice(0, 60)}`);
      }
  }
  for (const image of article.querySelectorAll("img")) {
    const text = image.alt.trim();
    if (!text || /\.(png|jpe?g|svg|gif)$/i.test(text)) found.push(`no alt text: ${image.src.split("/").pop()}`);
    if (image.complete && image.naturalWidth === 0) found.push(`image not loaded: ${image.src.split("/").pop()}`);
  }
  for (const error of article.querySelectorAll("mjx-merror")) found.push(`MathJax: ${head(error)}`);
  const prose = [...article.querySelectorAll("p, li, td, th, h1, h2, h3, figcaption, dt")].filter(shown).map((e) => {
    const copy = e.cloneNode(true);
    copy.querySelectorAll("pre, code, mjx-container, script, style, table, ul, ol").forEach((part) => part.remove());
    return copy.textContent;
  });
  for (const text of prose) {
    const raw = text.match(/\\[a-zA-Z]+|\\[()[\]]|\$[^\s$]+\$|\{[a-z]+(?::[a-z]+)*\}/);
    if (raw) found.push(`raw markup ${raw[0]}: ${text.trim().slice(0, 60)}`);
  }
  if ([...document.fonts].some((font) => font.family.startsWith("MJX") && font.status === "error"))
    found.push("a font of MathJax not loaded");
  return found;
}
