"use strict";
(() => {
  const form = document.getElementById("filters");
  const count = document.getElementById("count");
  const sections = [...document.querySelectorAll("section.board")];
  const bodyRows = (body) => [...body.rows].filter((row) => row.dataset.row !== undefined);
  const detailOf = (row) => {
    const next = row.nextElementSibling;
    return next && next.classList.contains("detail") ? next : null;
  };
  let details = null;

  const unpack = async () => {
    if (details === null) {
      const bytes = Uint8Array.from(atob(document.getElementById("details").textContent), (c) => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      details = await new Response(stream).json();
    }
    return details;
  };

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  // Tracks stay apart in whatever order their rows are: rows of different tracks are never in one list.
  const sort = (table, header) => {
    const headers = [...table.tHead.querySelectorAll("th[data-column]")];
    const column = Number(header.dataset.column);
    const number = header.classList.contains("number");
    const current = header.getAttribute("aria-sort");
    // The best values come first; where none is better than another, the smallest ones.
    const descending = current === "ascending" || (current !== "descending" && header.dataset.better === "1");
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const compare = (a, b) => {
      if (number && (Number.isNaN(a.value) || Number.isNaN(b.value))) {
        return Number.isNaN(a.value) - Number.isNaN(b.value) || a.place - b.place;
      }
      const order = number ? a.value - b.value : a.value.localeCompare(b.value, "en", { numeric: true });
      return (descending ? -order : order) || a.place - b.place;
    };
    for (const body of table.tBodies) {
      const keyed = bodyRows(body).map((row, place) => {
        const cell = row.cells[column];
        const value = number ? parseFloat(cell.dataset.value) : cell.textContent.trim();
        return { row, place, detail: detailOf(row), value };
      });
      body.append(...keyed.sort(compare).flatMap(({ row, detail }) => (detail ? [row, detail] : [row])));
    }
  };

  const link = (place, folders, text) => {
    const [key, folder] = place;
    if (folder === undefined) return element("span", { title: `record ${key}`, textContent: text });
    const [before, after] = folders[folder];
    return element("a", { href: before + key + after, title: `record ${key}`, textContent: text });
  };

  const accuracyCell = (cell, board, seeds) => {
    const made = element("td", { className: "number" });
    if (cell === undefined) return made;
    const [, , accuracy, ece, places] = cell;
    made.title = `ECE ${ece}`;
    if (places.length === 1) {
      made.append(link(places[0], board.folders, accuracy));
      return made;
    }
    made.append(accuracy);
    places.forEach((place, i) => {
      const name = seeds.length === places.length ? `s${seeds[i]}` : `${i + 1}`;
      const small = element("span", { className: "seed" }, link(place, board.folders, name));
      made.append(small);
    });
    return made;
  };

  const detailTable = (cells, board, seeds, name) => {
    const corruptions = [...new Set(cells.map((cell) => cell[0]))];
    const severities = [...new Set(cells.filter((cell) => cell[0] !== null).map((cell) => cell[1]))];
    const head = element("tr", {}, element("th", { scope: "col", textContent: "corruption" }));
    for (const severity of severities) {
      head.append(element("th", { scope: "col", className: "number", textContent: `severity ${severity}` }));
    }
    const body = element("tbody");
    for (const corruption of corruptions) {
      const row = element("tr", {}, element("th", { scope: "row", textContent: corruption ?? "clean" }));
      const own = cells.filter((cell) => cell[0] === corruption);
      if (corruption === null) {
        const cell = accuracyCell(own[0], board, seeds);
        cell.colSpan = Math.max(1, severities.length);
        cell.className = "number";
        row.append(cell);
      } else {
        for (const severity of severities) {
          row.append(accuracyCell(own.find((cell) => cell[1] === severity), board, seeds));
        }
      }
      body.append(row);
    }
    const caption = element("caption", { textContent: `${name}: accuracy in percent; a link leads to the record` });
    return element("table", {}, caption, element("thead", {}, head), body);
  };

  const toggle = async (button) => {
    const row = button.closest("tr");
    const open = button.getAttribute("aria-expanded") === "true";
    if (open) {
      detailOf(row).remove();
      button.setAttribute("aria-expanded", "false");
      return;
    }
    button.setAttribute("aria-expanded", "true");
    const board = (await unpack())[Number(row.closest("section").dataset.board)];
    const place = Number(row.dataset.row);
    const table = detailTable(board.rows[place], board, board.seeds[place], button.textContent);
    const cell = element("td", { colSpan: row.cells.length }, table);
    row.after(element("tr", { className: "detail" }, cell));
  };

  const filter = () => {
    const wanted = Object.fromEntries(
      [...form.querySelectorAll("[data-filter]")].map((field) => [field.dataset.filter, field.value]),
    );
    const part = wanted.method.trim().toLowerCase();
    let shown = 0;
    for (const section of sections) {
      section.hidden = ["shift", "protocol", "model"].some((name) => wanted[name] && section.dataset[name] !== wanted[name]);
      for (const body of section.querySelectorAll("tbody[data-track]")) {
        const other = Boolean(wanted.track && body.dataset.track !== wanted.track);
        let left = 0;
        for (const row of bodyRows(body)) {
          row.hidden = other || !row.querySelector("button.open").textContent.toLowerCase().includes(part);
          const detail = detailOf(row);
          if (detail) detail.hidden = row.hidden;
          if (!row.hidden) left += 1;
        }
        body.hidden = left === 0;
        if (!section.hidden) shown += left;
      }
    }
    for (const body of document.querySelectorAll("section.methods .matrix tbody")) {
      const other = Boolean(wanted.track && body.dataset.track && body.dataset.track !== wanted.track);
      for (const row of bodyRows(body)) {
        row.hidden = other || !row.cells[0].textContent.toLowerCase().includes(part);
      }
      body.hidden = bodyRows(body).every((row) => row.hidden);
    }
    count.textContent = `${shown} row${shown === 1 ? "" : "s"}`;
  };

  const copy = async (button) => {
    const section = button.closest("section");
    const source = section.querySelector(".latex pre");
    const said = section.querySelector(".said");
    try {
      await navigator.clipboard.writeText(source.textContent);
      said.textContent = "Copied.";
    } catch {
      section.querySelector(".latex").open = true;
      getSelection().selectAllChildren(source);
      said.textContent = "Press Ctrl+C to copy the selected text.";
    }
  };

  // A hint stands above each table that is wider than its place.
  const hint = () => {
    for (const scroll of document.querySelectorAll(".hint + .scroll")) {
      scroll.previousElementSibling.hidden = scroll.scrollWidth <= scroll.clientWidth;
    }
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const header = button.closest(".sortable > thead th");
    if (header) sort(header.closest("table"), header);
    else if (button.classList.contains("open")) toggle(button);
    else if (button.classList.contains("copy")) copy(button);
  });
  if (form) {
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    filter();
  }
  document.querySelectorAll(".copy").forEach((button) => { button.hidden = false; });
  addEventListener("resize", hint);
  hint();
})();
