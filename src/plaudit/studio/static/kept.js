// What this browser keeps, which may have no room for it.

// null where there is nothing that can be read.
export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

// Whether there was room; null takes away what is kept.
export function keep(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

const placeOf = (rater, project, item) => `plaudit-draft-${rater}-${project}-${item}`;

export const draftOf = (...whose) => recall(placeOf(...whose));

// An older draft would hide the newer one that the studio has.
export function keepDraft(rater, project, item, draft) {
  const place = placeOf(rater, project, item);
  if (!keep(place, draft)) keep(place, null);
}
