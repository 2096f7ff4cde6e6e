// What a reader of the page without eyes, or with weak ones, would stumble over. Each a sentence.
() => {
  const problems = [];
  const isShown = (element) => element.checkVisibility({ visibilityProperty: true });
  const all = (selector) => [...document.querySelectorAll(selector)].filter(isShown);
  const told = (element) => element.outerHTML.slice(0, 90);
  const textOf = (id) => document.getElementById(id)?.textContent.trim() ?? "";

  const nameOf = (element) =>
    element.getAttribute("aria-label") ||
    (element.getAttribute("aria-labelledby") ?? "").split(" ").map(textOf).join(" ").trim() ||
    [...(element.labels ?? [])].map((label) => label.textContent.trim()).join(" ") ||
    (element.matches("button, a") ? element.textContent.trim() : "") ||
    element.querySelector(":scope > legend, :scope > caption")?.textContent.trim() ||
    "";

  const named =
    "button, a[href], input, select, table, fieldset, section, [role=img], [role=region], [role=meter]";
  for (const element of all(named)) {
    if (!nameOf(element)) {
      problems.push(`has no name: ${told(element)}`);
    }
  }
  for (const drawing of all("svg")) {
    if (drawing.getAttribute("role") !== "img" && drawing.getAttribute("aria-hidden") !== "true") {
      problems.push(`neither an image nor hidden: ${told(drawing)}`);
    }
  }
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of ids.filter((each, index) => ids.indexOf(each) !== index)) {
    problems.push(`there are two with the id ${id}`);
  }
  for (const attribute of ["aria-labelledby", "aria-describedby", "for"]) {
    for (const element of document.querySelectorAll(`[${attribute}]`)) {
      for (const id of element.getAttribute(attribute).split(" ")) {
        if (!ids.includes(id)) {
          problems.push(`${attribute} names ${id}, which is not there`);
        }
      }
    }
  }

  let level = 0;
  for (const heading of all("h1, h2, h3, h4, h5, h6")) {
    const own = Number(heading.tagName[1]);
    if (own > level + 1) {
      problems.push(`h${own} follows h${level}: ${told(heading)}`);
    }
    if (!heading.textContent.trim()) {
      problems.push(`empty heading: ${told(heading)}`);
    }
    level = own;
  }
  for (const [selector, count] of [["h1", 1], ["main", 1], ["body > header", 1], ["body > footer", 1]]) {
    if (all(selector).length !== count) {
      problems.push(`${all(selector).length} × ${selector}`);
    }
  }
  if (!document.documentElement.lang || !document.title) {
    problems.push("the document has no language or title");
  }
  for (const head of all("th")) {
    if (!["col", "row"].includes(head.scope)) {
      problems.push(`a head of nothing: ${told(head)}`);
    }
  }

  // Contrast of every text with what it stands on: 4.5 at least (WCAG 2, 1.4.3).
  const channels = (colour) => {
    const pen = new OffscreenCanvas(1, 1).getContext("2d");
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const groundOf = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const ground = channels(getComputedStyle(each).backgroundColor);
      if (ground[3] === 255) {
        return ground.slice(0, 3);
      }
      if (ground[3] !== 0) {
        problems.push(`half transparent: ${told(each)}`);
      }
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !isShown(element) || element.closest(".unseen, .skip")) {
      continue;
    }
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [channels(colour).slice(0, 3), groundOf(element)].map(luminance);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) {
      problems.push(`contrast ${contrast.toFixed(2)}: ${told(element)}`);
    }
  }
  return [...new Set(problems)];
}
