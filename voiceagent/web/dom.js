/** The few helpers that the views share. Texts always go through `textContent`: nothing the server says becomes markup. */

export function byId(id) {
  return document.getElementById(id);
}

/** A new element: `el("p", {class: "note", "aria-label": "..."}, "text", child)`. Attributes that are null are left out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Set text only when it differs: a rewritten node would lose the reader's selection and wake screen readers. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setVariable(element, name, value) {
  element.style.setProperty(name, value);
}

export const prefersLessMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Offer a text as a file. */
export function saveFile(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
