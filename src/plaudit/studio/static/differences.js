// What each of two texts has that the other lacks, by words (by characters in scripts that put no spaces between them).
const PIECE = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[^\s\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]+|\s+/gu;
const MOST = 6000, FARTHEST = 700;

// [[[text, own], ...], [[text, own], ...]]: both texts in pieces, own where the other has no such piece there. Myers' greedy
// search for the shortest edit (1986), without what both begin and end with; texts of too many
// pieces, or that are too far apart, are all their own.
export function differences(one, other) {
  const a = one.match(PIECE) ?? [], b = other.match(PIECE) ?? [];
  let start = 0, end = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  const left = a.slice(start, a.length - end), right = b.slice(start, b.length - end);
  const shared = left.length + right.length > MOST ? [] : common(left, right);
  return [joined(a, left, start, new Set(shared.map(([x]) => x))), joined(b, right, start, new Set(shared.map(([, y]) => y)))];
}

function joined(all, middle, start, shared) {
  const pieces = all.map((text, at) => [text, at >= start && at < start + middle.length && !shared.has(at - start)]);
  const found = [];
  for (const [text, own] of pieces) {
    const last = found.at(-1);
    if (last && last[1] === own) last[0] += text;
    else found.push([text, own]);
  }
  return found;
}

// Pairs of places whose pieces are the same, in order: a longest common subsequence.
function common(a, b) {
  const n = a.length, m = b.length, trace = [];
  let reach = new Map([[1, 0]]);
  for (let d = 0; d <= Math.min(n + m, FARTHEST); d += 1) {
    trace.push(new Map(reach));
    for (let k = -d; k <= d; k += 2) {
      let x = k === -d || (k !== d && (reach.get(k - 1) ?? -1) < (reach.get(k + 1) ?? -1)) ? reach.get(k + 1) : reach.get(k - 1) + 1;
      let y = x - k;
      while (x < n && y < m && a[x] === b[y]) [x, y] = [x + 1, y + 1];
      reach.set(k, x);
      if (x >= n && y >= m) return walkBack(a, b, trace, d);
    }
  }
  return [];
}

function walkBack(a, b, trace, last) {
  const pairs = [];
  let x = a.length, y = b.length;
  for (let d = last; d >= 0; d -= 1) {
    const reach = trace[d], k = x - y;
    const before = k === -d || (k !== d && (reach.get(k - 1) ?? -1) < (reach.get(k + 1) ?? -1)) ? k + 1 : k - 1;
    const x0 = reach.get(before) ?? 0, y0 = x0 - before;
    while (x > x0 && y > y0 && x > 0 && y > 0) {
      pairs.unshift([x - 1, y - 1]);
      [x, y] = [x - 1, y - 1];
    }
    [x, y] = [x0, y0];
  }
  return pairs;
}
